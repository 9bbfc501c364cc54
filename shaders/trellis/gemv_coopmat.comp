// gemv.comp for up to 16 or 32 rows on KHR cooperative matrices; bytes are summed by the packed integer dot product.
#define COOPMAT
#define DOT
#include "trellis/gemv.comp"
