/* A choice of experts that is open: the router told what each is worth, and the first products of the experts choose
 * (shaders/moe/open_choice.glsl), so that no workgroup of the router waits for another. */
#ifndef MRL_OPS_CHOICE_H
#define MRL_OPS_CHOICE_H

#include <assert.h>

#include "ops/view.h"
#include "vk/pipeline.h"

#define MRL_CHOICE_SPEC 19   /* the first of its specialization constants */
#define MRL_CHOICE_SPECS 6

_Static_assert(MRL_CHOICE_SPEC + MRL_CHOICE_SPECS <= MRL_MAX_SPEC, "constants of a pipeline");

typedef struct mrl_choice {
    uint32_t spec[MRL_CHOICE_SPECS]; /* the first is 0 where no choice is open */
    mrl_view told;           /* keys and scores; absent from products that find ids */
    mrl_view ids, weights;   /* what is chosen, for later kernels, weights behind ids; absent: another says it */
    mrl_view usage;          /* counted up by who says it */
} mrl_choice;

/* Appends the constants to those of a pipeline, so that all products of a layer can be the same one. */
static inline uint32_t mrl_choice_specialise(const mrl_choice *choice, uint32_t spec[MRL_MAX_SPEC], uint32_t nspec)
{
    if (choice->spec[0] == 0)
        return nspec;
    assert(nspec <= MRL_CHOICE_SPEC);
    while (nspec < MRL_CHOICE_SPEC)
        spec[nspec++] = 0;
    for (int i = 0; i < MRL_CHOICE_SPECS; i++)
        spec[nspec++] = choice->spec[i];
    return nspec;
}

#endif
