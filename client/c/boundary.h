// Where C++ ends: statuses become codes with text, exceptions stay here, and
// the C structs become our types.
#ifndef LATENTKV_CLIENT_C_BOUNDARY_H_
#define LATENTKV_CLIENT_C_BOUNDARY_H_

#include <exception>
#include <new>
#include <string>

#include "absl/status/statusor.h"
#include "client/c/latentkv.h"
#include "core/digest.h"
#include "core/geometry.h"

namespace latentkv::c_api {

// The code of `status`; keeps its text for latentkv_error if it is none of
// success.
latentkv_code Report(const absl::Status& status) noexcept;
const char* LastError() noexcept;

// Runs `body`, which returns an absl::Status, and lets nothing out but a code.
template <typename Body>
latentkv_code Guarded(const Body& body) noexcept {
  try {
    return Report(body());
  } catch (const std::bad_alloc&) {
    return Report(absl::ResourceExhaustedError("out of memory"));
  } catch (const std::exception& error) {
    return Report(absl::InternalError(error.what()));
  } catch (...) {
    return Report(absl::InternalError("an exception of an unknown kind"));
  }
}

// InvalidArgument names the argument that is NULL.
absl::Status NotNull(const void* pointer, const char* name);
// InvalidArgument unless `struct_bytes` is the size that this library was built
// with.
absl::Status CheckStructBytes(size_t struct_bytes, size_t expected,
                              const char* name);

std::string TextOr(const char* text, const char* otherwise);
Digest DigestAt(const uint8_t* bytes);

// Not validated beyond what reading it needs.
absl::StatusOr<Geometry> GeometryOf(const latentkv_layer* layers,
                                    uint32_t layer_count);

// A copy that latentkv_free frees.
absl::Status CopyOut(const void* bytes, size_t count, uint8_t** copy,
                     size_t* copy_bytes);

}  // namespace latentkv::c_api

#endif  // LATENTKV_CLIENT_C_BOUNDARY_H_
