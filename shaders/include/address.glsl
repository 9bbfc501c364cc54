// base + rows * stride, in 64 bits: planes and outputs may be larger than 4 GiB.
uvec2 address_at(uvec2 base, uint rows, uint stride)
{
    uint high, low, carry;
    umulExtended(rows, stride, high, low);
    low = uaddCarry(base.x, low, carry);
    return uvec2(low, base.y + high + carry);
}
