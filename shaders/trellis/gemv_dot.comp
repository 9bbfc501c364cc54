// gemv.comp with the packed integer dot product: sums of bytes in one instruction.
#define DOT
#include "include/subnormals.glsl"
#include "trellis/gemv.comp"
