// y[row] = residual[row] + sum over the slots s of a row of weight[row, s] * x[row * slots + s], in the order of the
// slots. x (rows * slots, n) f32; y (rows, n). Workgroup (x, y) = (part of n, row); nothing is written for idle rows.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint Y_TYPE = 0;
layout(push_constant, scalar) uniform Push { mrl_push_moe_combine p; };

void main()
{
    const uint row = gl_WorkGroupID.y, n = gl_GlobalInvocationID.x, first = row * p.slots;
    if (n >= p.n || BufI32(p.ids).v[first] < 0)
        return;
    float y = is_null(p.residual) ? 0.0 : BufF32(p.residual).v[row * p.n + n];
    for (uint s = 0; s < p.slots; s++)
        y = fma(BufF32(p.weights).v[first + s], BufF32(p.x).v[(first + s) * p.n + n], y);
    store_act(p.y, row * p.n + n, Y_TYPE, y);
}
