/* Compiled as C: the interface's headers are. */
#include "client/c/latentkv.h"
#include "client/c/latentkv_codec.h"

int latentkv_header_is_c(void);

int latentkv_header_is_c(void) { return latentkv_version() != NULL && latentkv_error() != NULL; }
