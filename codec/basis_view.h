// A basis as the kernels of a device see it.
#ifndef LATENTKV_CODEC_BASIS_VIEW_H_
#define LATENTKV_CODEC_BASIS_VIEW_H_

#include "codec/basis.h"
#include "kernels/basis_view.h"
#include "kernels/latent_entropy.h"

namespace latentkv {

// Both outlive the view and its copies.
BasisView ViewOf(const Basis& basis, const LatentTables& tables);

}  // namespace latentkv

#endif  // LATENTKV_CODEC_BASIS_VIEW_H_
