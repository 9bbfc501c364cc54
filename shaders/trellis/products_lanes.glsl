// The products of products_f16.glsl in the lanes' own registers, for few rows: f16 pairs or packed integer dots.

// The sums of one unit: of f16 products, or of INT8 ones.
float sum[SUMS];
int whole[SUMS];

// Pair i of row m of x, of the 16 rows of a tile.
#define X_AT(tile, m, i) xs[((tile) * M + (m)) * X_VECS + (i)]

// Eight rows at a time, so that few values are alive at once.
void multiply_tile(uint tile)
{
    A2 chain[SUMS];
    [[unroll]] for (uint r = 0; r < 16; r += 8) {
        A2 v[8]; // [h][row / 2]
        [[unroll]] for (uint i = 0; i < 8; i++)
            v[i] = pair_of(state_of(code_of(i / 4, r + i % 4 * 2)), state_of(code_of(i / 4, r + i % 4 * 2 + 1)));
        [[unroll]] for (uint m = 0; m < M; m++) {
            const uvec4 x = X_AT(tile, m, r / 8);
            [[unroll]] for (uint h = 0; h < 2; h++)
                [[unroll]] for (uint j = 0; j < 4; j++)
                    chain[h * M + m] = r == 0 && j == 0 ? v[4 * h] * unpackFloat2x16(x[0])
                                                        : fma(v[4 * h + j], unpackFloat2x16(x[j]), chain[h * M + m]);
        }
    }
    [[unroll]] for (uint i = 0; i < SUMS; i++)
        sum[i] += float(chain[i].x) + float(chain[i].y);
}

void multiply_tile_apart(uint tile)
{
    A2 chain[SUMS];
    [[unroll]] for (uint i = 0; i < SUMS; i++)
        chain[i] = A2(A(0.0));
    [[unroll]] for (uint r = 0; r < 16; r += 8)
        [[unroll]] for (uint m = 0; m < M; m++) {
            const uvec4 x = X_AT(tile, m, r / 8);
            [[unroll]] for (uint i = 0; i < 16; i++) {
                const A2 pair = unpackFloat2x16(x[i / 4]);
                const A2 value = unpackFloat2x16(halves(product(state_of(code_of(i % 2, r + i / 2)))));
                chain[i % 2 * M + m] = fma(value, A2(i / 2 % 2 == 0 ? pair.x : pair.y), chain[i % 2 * M + m]);
            }
        }
    [[unroll]] for (uint i = 0; i < SUMS; i++)
        sum[i] += float(chain[i].x) + float(chain[i].y);
}

// Four rows at a time.
void multiply_tile_int8(uint tile)
{
    [[unroll]] for (uint r = 0; r < 16; r += 4) {
        uint v[8]; // [h][row]
        [[unroll]] for (uint i = 0; i < 8; i++)
            v[i] = product(state_of(code_of(i / 4, r + i % 4)));
        [[unroll]] for (uint m = 0; m < M; m++) {
            const uvec4 x = X_AT(tile, m, r / 4);
            [[unroll]] for (uint i = 0; i < 8; i++)
                whole[i / 4 * M + m] = dot4(v[i], int(x[i % 4]), whole[i / 4 * M + m]);
        }
    }
}

void multiply_any(uint tile)
{
    if (INT8 != 0)
        multiply_tile_int8(tile);
    else if (APART)
        multiply_tile_apart(tile);
    else
        multiply_tile(tile);
}

void begin_unit()
{
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        sum[i] = 0.0;
        whole[i] = 0;
    }
}

void end_unit(uint block)
{
    [[unroll]] for (uint i = 0; i < SUMS; i++) {
        const float found = INT8 != 0 ? 0.00676727294921875 * float(whole[i]) : sum[i];
        acc[i] = fma(found, scales[block * M + i % M], acc[i]);
    }
}

// What every value of an INT8 product has besides its byte sum, times x, summed over the blocks of row m.
float product_offset(uint m, uint blocks)
{
    float offset = 0.0;
    if (INT8 != 0)
        for (uint b = 0; b < blocks; b++)
            offset += offsets[b * M + m];
    return offset * (1024.0 * 0.00676727294921875 - 10.3828125);
}
