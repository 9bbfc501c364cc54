// The products of products_f16.glsl on cooperative matrices: each subgroup of 32 decodes 16 rows of its 64 columns into
// shared memory of its own and multiplies them at once, so that only the subgroup waits. M is 16 or 32 rows.
//
// A row of x has one scale for all blocks of the workgroup here, because sums stay in matrices till the end.
#define STAGE_PITCH 3 // uvec4s of a column: 16 halves and a pad, so that neither writes nor loads meet in a bank
#define MatA coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MatB coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define MatC coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>
const uint HEIGHT = M / 16;

shared uvec4 stage[LANES / 32 * 64 * STAGE_PITCH];
MatC acc[HEIGHT * 4]; // [row][column] of 16 x 16

void clear_sums()
{
    [[unroll]] for (uint i = 0; i < HEIGHT * 4; i++)
        acc[i] = MatC(0.0);
}

float row_scale(uint m, uint blocks)
{
    float most = scales[m];
    for (uint b = 1; b < blocks; b++)
        most = max(most, scales[b * M + m]);
    return most;
}

// All blocks of a row from their own scales to the row's; the whole workgroup, behind a barrier and before one.
void level_rows(uint blocks)
{
    for (uint i = gl_LocalInvocationIndex; i < blocks * ROWS * 16; i += LANES) {
        const uint part = i % 16, m = i / 16 % ROWS, b = i / 16 / ROWS, at = ((b * 8 + part / 2) * M + m) * 2 + part % 2;
        const float down = scales[b * M + m] / row_scale(m, blocks); // a power of two
        if (down == 1.0)
            continue;
        [[unroll]] for (uint j = 0; j < 4; j++)
            xs[at][j] = packFloat2x16(unpackFloat2x16(xs[at][j]) * A2(A(down)));
    }
}

void begin_unit() { }
void end_unit(uint block) { }

void multiply_any(uint tile)
{
    const uint l = gl_SubgroupInvocationID, base = gl_SubgroupID * 64 * STAGE_PITCH;
    const uint column = base + (l / 8 * 16 + l % 8) * STAGE_PITCH;
    [[unroll]] for (uint h = 0; h < 2; h++)
        [[unroll]] for (uint r = 0; r < 16; r += 8) {
            uvec4 rows;
            [[unroll]] for (uint j = 0; j < 4; j++)
                rows[j] = packFloat2x16(pair_of(state_of(code_of(h, r + 2 * j)), state_of(code_of(h, r + 2 * j + 1))));
            stage[column + 8 * h * STAGE_PITCH + r / 8] = rows;
        }
    subgroupBarrier();
    MatA a[HEIGHT];
    [[unroll]] for (uint i = 0; i < HEIGHT; i++)
        coopMatLoad(a[i], xs, (tile * M + 16 * i) * 2, 2, gl_CooperativeMatrixLayoutRowMajor);
    [[unroll]] for (uint j = 0; j < 4; j++) {
        MatB b;
        coopMatLoad(b, stage, base + 16 * j * STAGE_PITCH, STAGE_PITCH, gl_CooperativeMatrixLayoutColumnMajor);
        [[unroll]] for (uint i = 0; i < HEIGHT; i++)
            acc[i * 4 + j] = coopMatMulAdd(a[i], b, acc[i * 4 + j]);
    }
    subgroupBarrier();
}

// The subgroup's sums to work, or onto what is there; the last group to come scales them.
void add_sums(bool first, uint lane, uint blocks)
{
    const uint column = lane / 32 * 64;
    [[unroll]] for (uint i = 0; i < HEIGHT * 4; i++) {
        const uint at = i / 4 * 16 * HADAMARD_PITCH + column + i % 4 * 16;
        MatC sum = acc[i], before;
        if (!first) {
            coopMatLoad(before, work, at, HADAMARD_PITCH, gl_CooperativeMatrixLayoutRowMajor);
            sum = sum + before;
        }
        coopMatStore(sum, work, at, HADAMARD_PITCH, gl_CooperativeMatrixLayoutRowMajor);
    }
}

void scale_sums(uint blocks)
{
    for (uint i = gl_LocalInvocationIndex; i < 128 * ROWS; i += LANES)
        work[i / 128 * HADAMARD_PITCH + i % 128] *= row_scale(i / 128, blocks);
    barrier();
}
