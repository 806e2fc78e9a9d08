# Every #include lies in the row of its folder in cmake/LatentkvTarget.cmake; headers of third parties that few may see
# are included by those alone.
cmake_minimum_required(VERSION 3.25)
include(${root}/cmake/LatentkvTarget.cmake)

set(folders core kernels codec storage proto transport server client tools bench)
# First part of the path of a header, and the files (as a regular expression) that may include it.
set(guarded
  "rocksdb" "^storage/database\\.cc$"
  "(grpc|grpcpp|google)" "^(transport|server)/"
  "(cuda|cublas|nccl)[^/]*\\.h" "^(kernels/cuda|transport/nccl|bench/cuda_)"
  "(prometheus|spdlog)" "^(server|storage|client)/"
  "(fstream|sys|unistd\\.h|fcntl\\.h)" "^(codec/basis|storage/|server/|client/|transport/|tools/|bench/|kernels/cuda/)")

set(wrong "")
set(count 0)
foreach(folder IN LISTS folders)
  file(GLOB_RECURSE files RELATIVE ${root} ${root}/${folder}/*.h ${root}/${folder}/*.cc ${root}/${folder}/*.cu)
  foreach(file IN LISTS files)
    math(EXPR count "${count} + 1")
    file(STRINGS ${root}/${file} lines REGEX "^#include ")
    foreach(line IN LISTS lines)
      string(REGEX REPLACE "^#include [<\"]([^>\"]+)[>\"].*" "\\1" header ${line})
      string(REGEX REPLACE "/.*" "" first ${header})
      if(header MATCHES "^latentkv/v1/")
        set(first proto)
      endif()
      if(first STREQUAL "..")
        list(APPEND wrong "${file} includes ${header}: write it from the repository's root")
      elseif(first IN_LIST folders AND NOT first STREQUAL folder AND NOT first IN_LIST LATENTKV_MAY_USE_${folder})
        list(APPEND wrong "${file} includes ${header}: ${folder}/ may not use ${first}/")
      endif()
      set(rest ${guarded})
      while(rest)
        list(POP_FRONT rest headers allowed)
        if(first MATCHES "^${headers}$" AND NOT file MATCHES "${allowed}")
          list(APPEND wrong "${file} includes ${header}: not here")
        endif()
      endwhile()
    endforeach()
  endforeach()
endforeach()

list(JOIN wrong "\n" wrong)
if(wrong)
  message(FATAL_ERROR "${wrong}")
elseif(count LESS 50)
  message(FATAL_ERROR "only ${count} files found under ${root}")
endif()
message(STATUS "${count} files, every #include where it may be")
