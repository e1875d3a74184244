/* A cart: fixture of the documentation job. */
#include "cart.h"

static int helper(void); // forward

static const char *
cart_name(const struct cart *cart, int (*f)(int))
{
    return f(cart->n) ? "x" : "y";
}

// Adds one line to the cart.
// Returns the count.
int cart_add(struct cart *cart, const line_t *line) {
    return ++cart->n;
}

#if defined(WIDE)
int *wide(void) { return 0; }
#endif
