// EXL3 trellis codes: layout in memory, windows of the bit stream, codebooks. Needs the constants RATE2 (twice the
// bits a weight, 2 .. 16) and CODEBOOK.
//
// A tile is 16 (k) x 16 (n) weights in a ring of 256 codes; lane m of 8 has codes 32 m .. 32 m + 31, which are all 16
// rows of columns m and m + 8. A weight's state is the 16 bits of the ring that end with its own RATE2 / 2 new ones,
// so a lane's first states reach into the last 16 bits (the tail) of the lane before, lane 7 being before lane 0:
//
//     ring    | lane 0           | lane 1           | ...  | lane 7           |
//                          |tail||
//                          |state of code 32 |
//
// Code 8 q + 4 h + 2 r + i (q 0..3; h, r, i 0..1) of a lane is row 2 q + 8 r + i of column m + 8 h.
//
// Kernel layout: a unit is what a lane has of TILES successive tiles along k, UNIT_WORDS words of its bit stream,
// highest bit first; units of 64 lanes (8 tiles side by side: 128 columns) are interleaved by 16 bytes:
//     uvec4 [n / 128][k / (16 TILES)][UNIT_WORDS / 4][64]
const uint TILES = RATE2 % 2 == 0 ? 4 : 8;       // so that a unit is a whole number of uvec4s
const uint UNIT_WORDS = TILES * RATE2 / 2;
const uint UNIT_VECS = UNIT_WORDS / 4;
const uint UNIT_ROWS = 16 * TILES;
const uint TILE_BITS = 16 * RATE2;               // of a lane
const uint TILE_WORDS = (RATE2 + 1) / 2 + 1;     // with the tail

#define CODEBOOK_3INST 0
#define CODEBOOK_MCG 1
#define CODEBOOK_MUL1 2

// First uvec4 of the units of 64 lanes.
uint unit_at(uint column_block, uint unit, uint units) { return (column_block * units + unit) * UNIT_VECS * 64; }

uint lane_before(uint lane) { return (lane & ~7u) | ((lane + 7) & 7u); }

// Word i of the unit that begins at uvec4 `base`.
uint load_word(uvec2 trellis, uint base, uint lane, uint i)
{
    return BufU32(trellis).v[(base + i / 4 * 64 + lane) * 4 + i % 4];
}

// The last 16 bits of a tile, given the word that holds them.
uint tail_of(uint word, uint tile) { return ((tile + 1) * TILE_BITS & 31) == 0 ? word & 0xffffu : word >> 16; }

uint tail_word(uint tile) { return ((tile + 1) * TILE_BITS - 16) / 32; }

// The words that states are taken from: the tail of the lane before in the low half of w[0], then the lane's stream of
// one tile. At file scope, because compilers leave arrays that are passed to functions in memory.
uint w[TILE_WORDS];

// One tile straight from memory.
void load_tile(uvec2 trellis, uint base, uint lane, uint tile)
{
    const uint first = tile * TILE_BITS / 32;
    w[0] = tail_of(load_word(trellis, base, lane_before(lane), tail_word(tile)), tile);
    [[unroll]] for (uint i = 1; i < TILE_WORDS; i++)
        w[i] = load_word(trellis, base, lane, min(first + i - 1, UNIT_WORDS - 1));
    if (RATE2 % 2 == 1 && tile % 2 == 1) // half rates: odd tiles begin in the middle of a word
        [[unroll]] for (uint i = 1; i < TILE_WORDS; i++)
            w[i] = (w[i] << 16) | (w[min(i + 1, TILE_WORDS - 1)] >> 16);
}

// The low word of high:low >> shift, 0 .. 31.
uint funnel(uint high, uint low, uint shift) { return shift == 0 ? low : (high << (32 - shift)) | (low >> shift); }

// The state of code c, a constant: the 16 bits that end where it does. The stream moves by less than 16 bits, once
// for the two codes that need the same move, so that states are halves of words: one instruction each, and the moves.
uint state_of(uint c)
{
    const uint end = 32 + (c + 1) * RATE2 / 2, i = (end - 1) / 32, right = 31 - (end - 1) % 32;
    const uint moved = funnel(w[i - 1], w[i], right % 16);
    return right < 16 ? moved & 0xffffu : moved >> 16;
}

// The product whose bits make the value.
uint product(uint state)
{
    if (CODEBOOK == CODEBOOK_3INST)
        return state * 89226354u + 64248484u;
    return state * (CODEBOOK == CODEBOOK_MCG ? 0xCBAC1FEDu : 0x83DCD12Du);
}

// 3inst and mcg: two f16 whose sum is the value.
uint halves(uint x) { return (x & 0x8FFF8FFFu) ^ 0x3B603B60u; }

// mul1: the sum of the bytes, 0 .. 1020.
uint byte_sum(uint x)
{
    x = (x & 0x00ff00ffu) + ((x >> 8) & 0x00ff00ffu);
    return (x + (x >> 16)) & 0xffffu;
}

// Rounds to the nearest f16, ties to even, for values in f16's normal range or exact in it. Devices may convert
// by cutting off; integers leave no choice.
float round_half(float x)
{
    const uint bits = floatBitsToUint(x);
    return uintBitsToFloat((bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu);
}

// The value of a state, exactly as an f16 holds it. The sums are exact in f32 before they are rounded: 3inst and mcg
// add multiples of 2^-13 below 4, mul1 has multiples of 2^-18 below 16.
float value_of(uint state)
{
    const uint x = product(state);
    if (CODEBOOK == CODEBOOK_MUL1)
        return round_half(float(1024u + byte_sum(x)) * 0.006767272949 - 10.3828125);
    const vec2 v = unpackHalf2x16(halves(x));
    return round_half(v.x + v.y);
}
