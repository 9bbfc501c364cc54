// Columns n and n + 1, or n .. n + 7, of row i of the tile, if it has that many pairs. Needs moe/tile.glsl and
// include/epilogue.glsl.
void store_tile_pair(uint i, uint n, float a, float b, bool second)
{
    if (i < tile_rows)
        store_pair(tile_pair(i), n, a, b, second);
}

void store_tile_eight(uint i, uint n, const float v[8])
{
    if (i < tile_rows)
        store_eight(tile_pair(i), n, v);
}
