package com.example;

import java.util.List;

/** A cart. */
public class Cart<T> implements Payable {
    private final List<T> lines;

    public Cart(List<T> lines) {
        this.lines = lines;
    }

    @Override
    public int total() {
        return lines.size();
    }

    @Deprecated
    @SuppressWarnings("unchecked")
    static <U> Cart<U> of(U... lines) {
        return new Cart<>(List.of(lines));
    }

    enum Kind {
        FOOD,
        BOOK;

        boolean edible() {
            return this == FOOD;
        }
    }

    interface Payer {
        void pay(int amount);
    }

    record Line(String name, int price) {
        Line {
            assert price >= 0;
        }
    }
}
