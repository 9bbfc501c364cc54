// Pairs (row, chosen expert) sorted by expert, and a list of tiles of at most TILE pairs that chose the same one:
//
//   ids     3 0 | 3 1 | 0 3        (rows * slots) experts
//   order   1 4 | 3 | 0 2 5        (pairs) first those of expert 0, then 1, ...
//   tiles   (0, 0, 2) (1, 2, 1) (3, 3, 2) (3, 5, 1)   (bound, 3) expert, first place in order, pairs; TILE 2
//
// Pairs of idle rows (expert -1) are in no tile; entries behind the last tile get 0 pairs. The order of the pairs of an
// expert is any: each is computed by itself. One workgroup.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint EXPERTS = 1; // shared ones included
layout(constant_id = 2) const uint TILE = 64;

layout(push_constant, scalar) uniform Push { mrl_push_moe_plan p; };

#define AT_ONCE 8

shared uint count[EXPERTS];
shared uint cursor[EXPERTS]; // where the expert's next pair goes

// Experts of pairs first, first + threads ...; -1 behind the last pair. All loads are under way before one is needed.
int[AT_ONCE] load_ids(uint first)
{
    int experts[AT_ONCE];
    [[unroll]] for (uint i = 0; i < AT_ONCE; i++) {
        const uint pair = first + i * gl_WorkGroupSize.x;
        experts[i] = pair < p.pairs ? BufI32(p.ids).v[pair] : -1;
    }
    return experts;
}

void main()
{
    const uint t = gl_LocalInvocationIndex, threads = gl_WorkGroupSize.x;
    for (uint i = t; i < EXPERTS; i += threads)
        count[i] = 0;
    barrier();
    for (uint base = 0; base < p.pairs; base += AT_ONCE * threads) {
        const int experts[AT_ONCE] = load_ids(base + t);
        [[unroll]] for (uint i = 0; i < AT_ONCE; i++)
            if (experts[i] >= 0)
                atomicAdd(count[experts[i]], 1u);
    }
    barrier();
    BufU32 tiles = BufU32(p.tiles);
    uint all = 0;
    for (uint i = 0; i < EXPERTS; i++)
        all += (count[i] + TILE - 1) / TILE;
    for (uint base = 0; base < EXPERTS; base += threads) {
        const uint expert = base + t;
        uint first = 0, tile = 0;
        for (uint i = 0; i < EXPERTS; i++)
            if (i < expert) {
                first += count[i];
                tile += (count[i] + TILE - 1) / TILE;
            }
        if (expert >= EXPERTS)
            continue;
        cursor[expert] = first;
        for (uint done = 0; done < count[expert]; done += TILE) {
            tiles.v[3 * tile] = expert;
            tiles.v[3 * tile + 1] = first + done;
            tiles.v[3 * tile + 2] = min(TILE, count[expert] - done);
            tile++;
        }
    }
    for (uint i = all + t; i < p.bound; i += threads)
        tiles.v[3 * i + 2] = 0;
    barrier();
    for (uint base = 0; base < p.pairs; base += AT_ONCE * threads) {
        const int experts[AT_ONCE] = load_ids(base + t);
        [[unroll]] for (uint i = 0; i < AT_ONCE; i++)
            if (experts[i] >= 0)
                BufU32(p.order).v[atomicAdd(cursor[experts[i]], 1u)] = base + t + i * threads;
    }
}
