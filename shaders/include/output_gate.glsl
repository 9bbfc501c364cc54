// Attention with an output gate: in a qkv row each head of q is followed by a gate of DIM elements, whose sigmoid
// multiplies what the head gives. p.gate is the address of such rows, 0 without gates. Needs the constant QKV.
// Source: Qiu et al. 2025, "Gated Attention for Large Language Models", arXiv 2505.06708.

uint q_stride() { return is_null(p.gate) ? DIM : 2 * DIM; }
uint qkv_width() { return p.heads * q_stride() + 2 * p.kv_heads * DIM; }

// The row of qkv that row `row` of the result came from.
uvec2 gate_row(uint row) { return address_at(p.gate, row, qkv_width() * (QKV == ACT_F32 ? 4 : 2)); }

// The factor of element i of a row of the result.
float output_gate(uvec2 row, uint i)
{
    return 1.0 / (1.0 + exp(-load_act(row, i / DIM * 2 * DIM + DIM + i % DIM, QKV)));
}
