#include "storage/storage.h"

int Codec() { return Storage(); }
