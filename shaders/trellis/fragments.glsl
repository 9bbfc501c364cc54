// Matrices B of 16 x 16 whose values a subgroup of 32 decodes where they belong, without a detour through shared
// memory: lane 4 m + q holds rows 2 q, 2 q + 1, 2 q + 8, 2 q + 9 of column m and the same of column m + 8, in this
// order (feature fragments; fragments.comp tells). These are codes 8 q .. 8 q + 7 of lane m of a tile: the order that
// EXL3 chose for the matrix units of its own kernels.
//
//     bits of lane m of a tile   | codes 0 .. 7 | 8 .. 15 | 16 .. 23 | 24 .. 31 |
//     lane of the subgroup         4 m            4 m + 1   4 m + 2    4 m + 3       the lane before has the tail
//
// Needs trellis.glsl, trellis_f16.glsl, MatB, TRELLIS, FRAGMENT_TILES, the tiles of a step, and FRAGMENT_SLOTS, the
// steps whose words are on their way at once.
// RATE2 is 4 at least: a tail lies in one lane.
const uint EIGHT = 4 * RATE2; // bits of eight codes
const uint EDGE = RATE2 % 8 == 0 ? 32 : RATE2 % 4 == 0 ? 16 : RATE2 % 2 == 0 ? 8 : 4; // divides where they begin
const uint EIGHT_WORDS = (EIGHT + 31) / 32;
const uint EIGHT_FETCH = (EIGHT + 32 - EDGE + 31) / 32; // words that they may lie in

// At file scope like w of trellis.glsl: of the next steps and of this one.
const uint STEP_WORDS = FRAGMENT_TILES * EIGHT_FETCH;
uint fragment_words[FRAGMENT_SLOTS * STEP_WORDS], fragment_now[STEP_WORDS];

uint fragment_bit(uint tile) { return tile % TILES * TILE_BITS + gl_SubgroupInvocationID % 4 * EIGHT; }

// Words of column tile `column` of tile row `tile`, counted from the unit at `base`, to place j of FRAGMENT_SLOTS times
// FRAGMENT_TILES.
void fetch_fragment(uint j, uint base, uint column, uint tile)
{
    const uint unit = base + tile / TILES * UNIT_VECS * 64, word = fragment_bit(tile) / 32;
    [[unroll]] for (uint i = 0; i < EIGHT_FETCH; i++)
        fragment_words[j * EIGHT_FETCH + i] =
            load_word(TRELLIS, unit, column * 8 + gl_SubgroupInvocationID / 4, min(word + i, UNIT_WORDS - 1));
}

// The words of a slot become those of this step.
void next_fragments(uint slot)
{
    [[unroll]] for (uint i = 0; i < STEP_WORDS; i++)
        fragment_now[i] = fragment_words[slot * STEP_WORDS + i];
}

// high:low from bit `from` of high on, counted from its top; 0 .. 31.
uint window(uint high, uint low, uint from)
{
    return EDGE == 32 ? high : from == 0 ? high : (high << from) | (low >> (32 - from));
}

// The matrix whose words are at place j and begin at bit `from`.
MatB fragment(uint j, uint from)
{
    MatB b;
    [[unroll]] for (uint i = 0; i < EIGHT_WORDS; i++)
        w[i + 1] = window(fragment_now[j * EIGHT_FETCH + i],
                          i + 1 < EIGHT_FETCH ? fragment_now[j * EIGHT_FETCH + min(i + 1, EIGHT_FETCH - 1)] : 0, from);
    const uint end = w[EIGHT_WORDS]; // literals are beyond what glslang takes the size of w for
    const uint last = EIGHT_WORDS == 1 ? end >> (32 - EIGHT) : funnel(w[EIGHT_WORDS - 1], end, 64 - EIGHT);
    w[0] = subgroupShuffle(last & 0xffffu, (gl_SubgroupInvocationID + 31) % 32);
    [[unroll]] for (uint i = 0; i < 8; i += 2) {
        const A2 values = pair_of(state_of(i), state_of(i + 1));
        b[i] = values.x;
        b[i + 1] = values.y;
    }
    return b;
}
