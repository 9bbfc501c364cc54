// For kernels with bits of f16 that are subnormal on purpose, before everything else. Devices need the feature
// subnormals.
#extension GL_EXT_spirv_intrinsics : require
spirv_execution_mode(extensions = ["SPV_KHR_float_controls"], capabilities = [4464], 4459, 16); // DenormPreserve 16
