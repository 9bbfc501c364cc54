/* Prints what a set of Vulkan definitions says, one fact a line; test_vulkan_defs.py builds this twice (with
 * OFFICIAL and without), around one list of facts, and compares the outputs. */
#include <stdio.h>

#ifdef OFFICIAL
#include <vulkan/vulkan_core.h>
#else
#include "vk/vulkan_defs.h"
#endif

#define VALUE(name) printf("%s = %lld\n", #name, (long long)(name));
#define STRING(name) printf("%s = %s\n", #name, name);
#define SIZE(type) printf("sizeof %s = %zu\n", #type, sizeof(type));
#define MEMBER(type, member)                                                                       \
    printf("%s.%s at %zu, %zu bytes\n", #type, #member, offsetof(type, member),                    \
           sizeof(((type *)0)->member));

int main(void)
{
#include "facts.inc"
    return 0;
}
