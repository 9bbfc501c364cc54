// Products of gemv_coopmat.glsl without a detour through shared memory, where lane 4 m + q of a subgroup of 32 holds
// of a 16 x 16 matrix B rows 2 q, 2 q + 1, 2 q + 8, 2 q + 9 of column m and the same of column m + 8, in this order
// (feature fragments; fragments.comp tells). These are codes 8 q .. 8 q + 7 of lane m of a tile, the order that EXL3
// chose for the matrix units of its own kernels, so that a lane decodes what it holds.
//
//     bits of lane m of a tile   | codes 0 .. 7 | 8 .. 15 | 16 .. 23 | 24 .. 31 |
//     lane of the subgroup         4 m            4 m + 1   4 m + 2    4 m + 3       the lane before has the tail
//
// A subgroup has WIDTH tiles side by side, ABREAST subgroups the 128 columns; they take every so many tile of the rows,
// the words of the next one on their way.
const uint EIGHT = 4 * RATE2; // bits of eight codes
const uint EDGE = RATE2 % 8 == 0 ? 32 : RATE2 % 4 == 0 ? 16 : RATE2 % 2 == 0 ? 8 : 4; // divides where they begin
const uint EIGHT_WORDS = (EIGHT + 31) / 32;
const uint EIGHT_FETCH = (EIGHT + 32 - EDGE + 31) / 32; // words that they may lie in

// At file scope like w of trellis.glsl: of the next tiles and of these.
uint fragment_words[WIDTH * EIGHT_FETCH], fragment_now[WIDTH * EIGHT_FETCH];

uint fragment_bit(uint tile) { return tile % TILES * TILE_BITS + gl_SubgroupInvocationID % 4 * EIGHT; }

void fetch_fragments(uint base, uint tile)
{
    const uint unit = base + tile / TILES * UNIT_VECS * 64, word = fragment_bit(tile) / 32;
    [[unroll]] for (uint j = 0; j < WIDTH; j++)
        [[unroll]] for (uint i = 0; i < EIGHT_FETCH; i++)
            fragment_words[j * EIGHT_FETCH + i] =
                load_word(TRELLIS, unit, (gl_SubgroupID % ABREAST * WIDTH + j) * 8 + gl_SubgroupInvocationID / 4,
                          min(word + i, UNIT_WORDS - 1));
}

// high:low from bit `from` of high on, counted from its top; 0 .. 31.
uint window(uint high, uint low, uint from)
{
    return EDGE == 32 ? high : from == 0 ? high : (high << from) | (low >> (32 - from));
}

// The eight codes of tile j that lie in its words from bit `from` on -> w of trellis.glsl, behind the tail of the lane
// before.
void align_fragment(uint j, uint from)
{
    [[unroll]] for (uint i = 0; i < EIGHT_WORDS; i++)
        w[i + 1] = window(fragment_now[j * EIGHT_FETCH + i],
                          i + 1 < EIGHT_FETCH ? fragment_now[j * EIGHT_FETCH + min(i + 1, EIGHT_FETCH - 1)] : 0, from);
    const uint end = w[EIGHT_WORDS]; // literals are beyond what glslang takes the size of w for
    const uint last = EIGHT_WORDS == 1 ? end >> (32 - EIGHT) : funnel(w[EIGHT_WORDS - 1], end, 64 - EIGHT);
    w[0] = subgroupShuffle(last & 0xffffu, (gl_SubgroupInvocationID + 31) % 32);
}

MatA fragment_a[HEIGHT];

// Tile j, a constant: its values, and their products with the rows of x.
void multiply_fragment(uint j, uint from)
{
    MatB b;
    if (j >= WIDTH)
        return;
    align_fragment(j, from);
    [[unroll]] for (uint i = 0; i < 8; i += 2) {
        const A2 values = pair_of(state_of(i), state_of(i + 1));
        b[i] = values.x;
        b[i + 1] = values.y;
    }
    [[unroll]] for (uint i = 0; i < HEIGHT; i++)
        acc[i * WIDTH + j] = coopMatMulAdd(fragment_a[i], b, acc[i * WIDTH + j]);
}

// All tiles of the rows, `tiles` of them, from the unit at `base` on.
void multiply_fragments(uint base, uint tiles)
{
    const uint step = LANES / 32 / ABREAST;
    uint tile = gl_SubgroupID / ABREAST;
    MatA next[HEIGHT];

    if (tile >= tiles)
        return;
    fetch_fragments(base, tile);
    [[unroll]] for (uint i = 0; i < HEIGHT; i++)
        next[i] = load_a(16 * i, tile);
    [[dont_unroll]] for (; tile < tiles; tile += step) {
        [[unroll]] for (uint i = 0; i < WIDTH * EIGHT_FETCH; i++)
            fragment_now[i] = fragment_words[i];
        [[unroll]] for (uint i = 0; i < HEIGHT; i++)
            fragment_a[i] = next[i];
        const uint following = min(tile + step, tiles - 1), from = fragment_bit(tile) % 32;
        fetch_fragments(base, following);
        [[unroll]] for (uint i = 0; i < HEIGHT; i++)
            next[i] = load_a(16 * i, following);
        // One by one, as in stream.glsl.
        multiply_fragment(0, from);
        multiply_fragment(1, from);
        multiply_fragment(2, from);
        multiply_fragment(3, from);
        multiply_fragment(4, from);
        multiply_fragment(5, from);
        multiply_fragment(6, from);
        multiply_fragment(7, from);
    }
}
