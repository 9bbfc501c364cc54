// Columns n and n + 1 of row i of the tile, if it has that many pairs. Needs moe/tile.glsl and include/epilogue.glsl.
void store_tile_pair(uint i, uint n, float a, float b, bool second)
{
    if (i < tile_rows)
        store_pair(tile_pair(i), n, a, b, second);
}
