// A cart: fixture of the documentation job.
'use strict';

/**
 * Adds two prices.
 * @param {number} a
 */
function add(a, b) {
  return a + b;
}

export default class Cart extends Base {
  constructor(owner) {
    super();
    this.owner = owner;
  }

  static of(...lines) { return new Cart(lines); }

  get total() {
    return this.lines.reduce((sum, line) => sum + line.price, 0);
  }

  onClick = (event) => {
    event.stop();
  };
}

export const double = (x) => x * 2;

// eslint-disable-next-line no-unused-vars
export async function load(url) {
  const inner = () => 1;
  return fetch(url);
}

Cart.prototype.clear = function () {
  this.lines = [];
};

module.exports = {
  pay(amount) {
    return amount;
  },
  refund: function (amount) {
    return -amount;
  },
};
