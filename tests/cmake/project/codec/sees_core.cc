#include "core/core.h"

int Codec() { return Core(); }
