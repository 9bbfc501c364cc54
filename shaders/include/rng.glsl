// Philox4x32-10, a counter-based generator: the same key and counter give the same words on every
// device, so a draw needs no state but its number. Source: Salmon et al., "Parallel random numbers:
// as easy as 1, 2, 3", SC 2011, table 2 and section 4.3.
uvec4 philox4x32(uvec4 counter, uvec2 key)
{
    for (uint round = 0u; round < 10u; round++) {
        uint hi0, lo0, hi1, lo1;
        umulExtended(0xD2511F53u, counter.x, hi0, lo0);
        umulExtended(0xCD9E8D57u, counter.z, hi1, lo1);
        counter = uvec4(hi1 ^ counter.y ^ key.x, lo1, hi0 ^ counter.w ^ key.y, lo0);
        key += uvec2(0x9E3779B9u, 0xBB67AE85u);
    }
    return counter;
}
