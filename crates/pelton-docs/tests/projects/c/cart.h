#ifndef CART_H
#define CART_H

#ifdef __cplusplus
extern "C" {
#endif

struct cart {
    int n;
};

typedef struct {
    const char *name;
} line_t;

typedef int (*visit_fn)(struct cart *cart, void *data);

enum kind { FOOD, BOOK };

/* Adds one line. */
int cart_add(struct cart *cart, const line_t *line);
void cart_free(struct cart *cart);

#ifdef __cplusplus
}
#endif

#endif
