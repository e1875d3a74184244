// Package cart is a fixture of the documentation job.
package cart

import "fmt"

// Cart holds lines.
type Cart struct {
	Owner string
	lines []Line
}

type (
	Line struct {
		Name string
	}

	// Payer pays.
	Payer interface {
		Pay(amount int) error
	}
)

type Cents = int64

func New(owner string) *Cart {
	return &Cart{Owner: owner}
}

//go:noinline
func (c *Cart) Total() (sum Cents) {
	add := func(n Cents) { sum += n }
	add(1)
	return
}

func Map[T any](xs []T, f func(T) T) []T {
	for i := range xs {
		xs[i] = f(xs[i])
	}
	return xs
}

func (p *Pair[K, V]) Swap() { fmt.Println(p) }
