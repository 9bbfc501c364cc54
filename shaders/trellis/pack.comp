// An EXL3 trellis from the file's layout to kernel layout (include/trellis.glsl), or back; no bit is lost.
//
//   file   [k / 16][n / 16] tiles of 4 RATE2 words, the ring of 256 codes, highest bit first
//
// A thread owns a word of the destination. Streams move in halves of 16 bits: half rates give a lane an odd number.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint RATE2 = 8;
layout(constant_id = 2) const uint CODEBOOK = 0;
layout(constant_id = 3) const uint BACK = 0;

layout(push_constant, scalar) uniform Push { mrl_push_trellis_copy p; };
#include "include/trellis.glsl"

const uint RING_WORDS = 4 * RATE2;

// The 16 bits that begin at bit `at` (a multiple of 16) of a stream of words from word `base` on.
uint half_of(uint word, uint at) { return at % 32 == 0 ? word >> 16 : word & 0xffffu; }

void main()
{
    const uint tiles_n = p.n / 16, units = p.k / UNIT_ROWS;
    const uint total = p.rows * tiles_n * RING_WORDS;
    for (uint i = gl_GlobalInvocationID.x; i < total; i += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
        uint word = 0;
        if (BACK != 0) {
            const uint ring = i % RING_WORDS, tile = i / RING_WORDS, a = p.row + tile / tiles_n, b = tile % tiles_n;
            [[unroll]] for (uint h = 0; h < 2; h++) {
                const uint bit = ring * 32 + h * 16, m = bit / TILE_BITS, at = a % TILES * TILE_BITS + bit % TILE_BITS;
                const uint found = load_word(p.trellis, unit_at(b / 8, a / TILES, units), b % 8 * 8 + m, at / 32);
                word = word << 16 | half_of(found, at);
            }
            BufU32(p.file).v[i] = word;
            continue;
        }
        const uint j = i % 4, lane = i / 4 % 64, vec = i / 256 % UNIT_VECS, unit = i / 256 / UNIT_VECS;
        const uint units_here = p.rows / TILES, column = unit / units_here, row = unit % units_here;
        [[unroll]] for (uint h = 0; h < 2; h++) {
            const uint at = (4 * vec + j) * 32 + h * 16, tile = row * TILES + at / TILE_BITS;
            const uint bit = lane % 8 * TILE_BITS + at % TILE_BITS;
            const uint found = BufU32(p.file).v[(tile * tiles_n + column * 8 + lane / 8) * RING_WORDS + bit / 32];
            word = word << 16 | half_of(found, bit);
        }
        const uint base = unit_at(column, p.row / TILES + row, units);
        BufU32(p.trellis).v[((base + vec * 64) + lane) * 4 + j] = word;
    }
}
