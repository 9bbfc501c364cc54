// Which expert a workgroup works for, and for which pairs: a tile of the plan, or one pair. Needs the push block p
// (mrl_push_moe or mrl_push_trellis_moe). workgroup: its number along that axis of the grid.
uint tile_expert;
uint expert_row; // first row of the expert in the planes
uint tile_first; // place of the tile's first pair in p.order, or the pair itself
uint tile_rows;  // pairs

// False where there is nothing to do. The same for the whole workgroup.
bool find_tile(uint workgroup)
{
    if (is_null(p.tiles)) {
        const int expert = BufI32(p.ids).v[workgroup];
        tile_expert = uint(max(expert, 0));
        expert_row = tile_expert * p.n;
        tile_first = workgroup;
        tile_rows = 1;
        return expert >= 0;
    }
    BufU32 tiles = BufU32(p.tiles);
    tile_expert = tiles.v[3 * workgroup];
    expert_row = tile_expert * p.n;
    tile_first = tiles.v[3 * workgroup + 1];
    tile_rows = tiles.v[3 * workgroup + 2];
    return tile_rows > 0;
}

// Pair i of the tile; the last one again from tile_rows on.
uint tile_pair(uint i)
{
    const uint place = tile_first + min(i, tile_rows - 1);
    return is_null(p.tiles) ? place : BufU32(p.order).v[place];
}
