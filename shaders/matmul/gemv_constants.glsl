// Specialization constants of the few-rows kernels, in the order of csrc/ops/gemv.c.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 1;       // even for gated activations
layout(constant_id = 2) const uint SPLIT = 1;
layout(constant_id = 3) const uint M = 1;          // rows of x
layout(constant_id = 4) const uint PREFETCH = 4;
layout(constant_id = 5) const uint CHUNK = 4096;   // elements of k staged at a time
layout(constant_id = 6) const uint XS = 512;       // uvec4s of shared memory: M * CHUNK * sizeof(A) / 16
layout(constant_id = 7) const uint X_TYPE = 0;
layout(constant_id = 8) const uint Y_TYPE = 0;
layout(constant_id = 9) const uint SCALE = 0;
layout(constant_id = 10) const uint ZERO = 0;
layout(constant_id = 11) const uint GROUP = 0;
layout(constant_id = 12) const uint ACTIVATION = 0;
layout(constant_id = 13) const uint NORM = 0;
layout(constant_id = 14) const uint K_PADDED = 0;  // 0: the pushed one
layout(constant_id = 15) const uint ONCE = 0;      // 1: all of x is one chunk
layout(constant_id = 16) const uint SCALES = 1;    // groups in a unit
layout(constant_id = 17) const uint KEPT = 0;      // 1, 2: pieces of a normalised row that a thread keeps in registers
layout(constant_id = 18) const uint BROADCAST = 0; // 1: matmul/gemv_broadcast.glsl; M is 1 and a workgroup one subgroup
