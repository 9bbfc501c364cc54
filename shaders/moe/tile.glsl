// Which expert a workgroup works for, and for which pairs: a tile of the plan, or one pair. Needs the push block p
// (mrl_push_moe or mrl_push_trellis_moe), and PLACES, the address in it that says where experts lie: where those of a
// layer have several formats, each dispatch leaves out the pairs and tiles whose expert lies in another stack.
#include "moe/open_choice.glsl"
uint tile_expert; // its place in the stack
uint expert_row;  // its first row in the planes
uint tile_first; // place of the tile's first pair in p.order, or the pair itself
uint tile_rows;  // pairs

// False where there is nothing to do. The same for the whole workgroup, whose number along that axis of the grid is
// `workgroup`. first: it has the first columns of its pair or tile.
bool find_tile(uint workgroup, bool first)
{
    int expert = -1;
    if (is_null(p.tiles)) {
        if (EXPERTS != 0 && !is_null(p.order))
            expert = choose_slot(workgroup, first);
        else
            expert = BufI32(p.ids).v[workgroup];
        tile_first = workgroup;
        tile_rows = 1;
    } else {
        BufU32 tiles = BufU32(p.tiles);
        tile_first = tiles.v[3 * workgroup + 1];
        tile_rows = tiles.v[3 * workgroup + 2];
        if (tile_rows > 0)
            expert = int(tiles.v[3 * workgroup]);
    }
    if (expert >= 0 && !is_null(PLACES))
        expert = BufI32(PLACES).v[expert];
    tile_expert = uint(max(expert, 0));
    expert_row = tile_expert * p.n;
    return expert >= 0;
}

// Pair i of the tile; the last one again from tile_rows on.
uint tile_pair(uint i)
{
    const uint place = tile_first + min(i, tile_rows - 1);
    return is_null(p.tiles) ? place : BufU32(p.order).v[place];
}
