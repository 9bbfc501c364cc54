// Applies (slot, field, value) edits to the step state between two steps (push.h: mrl_push_edit).
//
// One workgroup in two phases: clearing a slot's seen set comes before every other edit, whatever
// their order in the list. No (slot, field) stands twice but MRL_EDIT_SEEN, which ORs.
layout(local_size_x_id = 0) in;
layout(push_constant, scalar) uniform Push { mrl_push_edit p; };

void apply(uint slot, uint field, uint value, uint words)
{
    if (field < MRL_SLOT_WORDS)
        BufU32(p.params).v[slot * MRL_SLOT_WORDS + field] = value;
    else if (field == MRL_EDIT_TOKEN)
        BufU32(p.tokens).v[slot] = value;
    else if (field == MRL_EDIT_POSITION)
        BufU32(p.positions).v[slot] = value;
    else if (field == MRL_EDIT_SEEN)
        atomicOr(BufU32(p.seen).v[slot * words + (value >> 5)], 1u << (value & 31u));
    else if (field >= MRL_EDIT_BIAS_VALUE)
        BufU32(p.bias).v[(slot * MRL_BIAS_MAX + field - MRL_EDIT_BIAS_VALUE) * 2u + 1u] = value;
    else if (field >= MRL_EDIT_BIAS_ID)
        BufU32(p.bias).v[(slot * MRL_BIAS_MAX + field - MRL_EDIT_BIAS_ID) * 2u] = value;
}

void main()
{
    uint tid = gl_LocalInvocationIndex, threads = gl_WorkGroupSize.x, words = (p.vocab + 31u) >> 5;
    BufU32 edits = BufU32(p.edits);
    for (uint e = tid; e < p.count; e += threads)
        if (edits.v[3u * e + 1u] == MRL_EDIT_CLEAR_SEEN)
            for (uint i = 0u; i < words; i++)
                BufU32(p.seen).v[edits.v[3u * e] * words + i] = 0u;
    controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup, gl_StorageSemanticsBuffer,
                   gl_SemanticsAcquireRelease | gl_SemanticsMakeAvailable |
                       gl_SemanticsMakeVisible);
    for (uint e = tid; e < p.count; e += threads)
        apply(edits.v[3u * e], edits.v[3u * e + 1u], edits.v[3u * e + 2u], words);
}
