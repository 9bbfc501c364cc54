// How 64 lanes walk the units of 128 columns: every GROUPS-th one, its words in registers, those of the next in flight.
// Needs PREFETCH (with it subgroups of 8 lanes or more), GROUPS and SMALL_CODE, and for each unit calls begin_unit,
// multiply_tile for its tiles and end_unit, which the kernel defines. Words are at file scope like w of trellis.glsl.
uint words[UNIT_WORDS];
uvec4 next[UNIT_VECS];

// The stream of the 64 lanes: begin_stream says where it is.
uint stream_base;  // first uvec4 of unit 0
uint stream_count; // units
uint stream_lane;  // of the 64

void begin_stream(uint base, uint count, uint lane)
{
    stream_base = base;
    stream_count = count;
    stream_lane = lane;
}

void begin_unit();
void multiply_tile(uint tile); // whose words are in w; counted from the first unit
void end_unit(uint unit);

// Early, so that memory is waited for beside other work.
void request_unit(uvec2 trellis, uint unit)
{
    if (PREFETCH != 0 && unit < stream_count) {
        BufU32x4 from = BufU32x4(address_at(trellis, stream_base + unit * UNIT_VECS * 64 + stream_lane, 16));
        [[unroll]] for (uint i = 0; i < UNIT_VECS; i++)
            next[i] = from.v[i * 64];
    }
}

// Tile `tile`, a constant below TILES / 2, of the half of a unit that lies at the front of words.
void take_tile(uint unit, uint part, uint tile)
{
    const uint first = tile * TILE_BITS / 32;
    if (tile >= TILES / 2)
        return;
    w[0] = subgroupShuffle(tail_of(words[tail_word(tile)], tile), lane_before(gl_SubgroupInvocationID));
    [[unroll]] for (uint i = 1; i < TILE_WORDS; i++) {
        w[i] = words[first + i <= UNIT_WORDS ? first + i - 1 : 0];
        if (RATE2 % 2 == 1 && tile % 2 == 1)
            w[i] = (w[i] << 16) | (words[first + i < UNIT_WORDS ? first + i : 0] >> 16);
    }
    multiply_tile(unit * TILES + part * (TILES / 2) + tile);
}

// The tiles of the half of a unit that lies at the front of words, and the other half to the front. One by one: a long
// loop is unrolled so late that its arrays stay in memory.
void take_half(uint unit, uint part)
{
    take_tile(unit, part, 0);
    take_tile(unit, part, 1);
    take_tile(unit, part, 2);
    take_tile(unit, part, 3);
    [[unroll]] for (uint i = 0; i < UNIT_WORDS / 2; i++)
        words[i] = words[i + UNIT_WORDS / 2];
}

// The products of a unit that was requested; the next one is.
void take_unit(uvec2 trellis, uint unit)
{
    begin_unit();
    if (PREFETCH != 0) {
        [[unroll]] for (uint i = 0; i < UNIT_VECS; i++) {
            words[4 * i] = next[i].x;
            words[4 * i + 1] = next[i].y;
            words[4 * i + 2] = next[i].z;
            words[4 * i + 3] = next[i].w;
        }
        request_unit(trellis, unit + GROUPS);
        // With SMALL_CODE half a unit is the body of a loop.
        if (SMALL_CODE) {
            [[dont_unroll]] for (uint part = 0; part < 2; part++)
                take_half(unit, part);
        } else {
            take_half(unit, 0);
            take_half(unit, 1);
        }
    } else {
        for (uint tile = 0; tile < TILES; tile++) {
            load_tile(trellis, stream_base + unit * UNIT_VECS * 64, stream_lane, tile);
            multiply_tile(unit * TILES + tile);
        }
    }
    end_unit(unit);
}
