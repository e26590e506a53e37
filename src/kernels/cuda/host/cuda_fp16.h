// See host.h, which has what the kernels use of it.
#include "host.h"
