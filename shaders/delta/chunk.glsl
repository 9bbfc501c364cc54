// A prompt of a gated delta net in chunks of CHUNK rows, whose products go through matrix units (f16 operands, f32
// sums). With G_i the decay of a chunk's rows up to i, and rows i, j of a chunk that found the state S:
//
//   d_i = beta_i (v_i - G_i k_i S - sum over j < i of G_i / G_j (k_i k_j) d_j)
//   o_i = G_i q_i S + sum over j <= i of G_i / G_j (q_i k_j) d_j
//   S'  = G_last S + sum over j of G_last / G_j k_j^T d_j
//
// The first line is a triangular system that S does not enter: (1 + L) d = beta (v - G k S), so d = U - W S with
//
//   T = (1 + L)^-1    W = T diag(beta G) K    U = T diag(beta) V
//
// chunk_coopmat.comp makes T, and of it what walk_coopmat.comp takes from chunk to chunk. Rows behind the prompt count
// as zeros with beta 0 and decay 1. A row that is not finite may reach rows before it, those of its chunk.
// Source: Yang et al. 2024, "Gated Delta Networks", arXiv 2412.06464, section 3.3; tests/ref/delta.py, `chunked`.
#extension GL_KHR_cooperative_matrix : require
#include "delta/mixed.glsl"

layout(constant_id = 10) const uint SUBGROUP = 32; // its size
const uint CHUNK = 64;
const uint TILES = CHUNK / 16; // of 16 rows, and subgroups
const uint LANES = TILES * SUBGROUP;
const uint K_TILES = KEY_DIM / 16;

// What there is of a chunk and value head, in uvec4s; f16 but for U.
const uint W_AT = 0;                              // (CHUNK, KEY_DIM): -W
const uint Q_AT = W_AT + CHUNK * KEY_DIM / 8;     // (CHUNK, KEY_DIM): G_i q_i
const uint KT_AT = Q_AT + CHUNK * KEY_DIM / 8;    // (KEY_DIM, CHUNK): G_last / G_j k_j, transposed
const uint QK_AT = KT_AT + CHUNK * KEY_DIM / 8;   // (CHUNK, CHUNK): G_i / G_j (q_i k_j), j <= i
const uint U_AT = QK_AT + CHUNK * CHUNK / 8;      // (CHUNK, VALUE_DIM) f32
const uint LAST_AT = U_AT + CHUNK * VALUE_DIM / 4; // G_last f32
const uint BLOCK = LAST_AT + 1;

#define MatA coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MatB coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define MatC coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>
#define MatH coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>
#define ROWS gl_CooperativeMatrixLayoutRowMajor
#define COLUMNS gl_CooperativeMatrixLayoutColumnMajor

uvec2 block_of(uint chunk, uint head) { return address_at(p.chunks, chunk * VALUE_HEADS + head, BLOCK * 16); }

uvec4 pack8(vec4 a, vec4 b)
{
    return uvec4(packHalf2x16(a.xy), packHalf2x16(a.zw), packHalf2x16(b.xy), packHalf2x16(b.zw));
}
