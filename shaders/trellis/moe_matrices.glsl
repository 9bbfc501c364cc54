// Behind the body of moe_gemv_coopmat.comp and moe_gemm_coopmat.comp, for which expert_trellis and expert_svh say where
// the weights of the tile's expert are.
bool coopmat_prologue()
{
    if (!find_tile(gl_WorkGroupID.z, false))
        return false;
    expert_trellis = address_at(p.trellis, tile_expert, K_PADDED / 16 * N_PADDED * RATE2);
    expert_svh = address_at(p.svh, tile_expert, 2 * N_PADDED);
    return true;
}

void finish_column(uint m, uint n, float y)
{
    if (n < p.n)
        store_act(p.y, tile_pair(m) * p.n + n, Y_TYPE, y);
}
