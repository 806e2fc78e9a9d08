#include "storage/storage.h"

#include "core/core.h"

int Storage() { return Core(); }
