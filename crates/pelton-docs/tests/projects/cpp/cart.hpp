#pragma once
#include <vector>

namespace shop::core {

template <typename T>
class Cart final : public Base<T> {
 public:
  Cart() = default;
  explicit Cart(int n) : n_(n) {}
  ~Cart();

  /// The number of lines.
  int size() const noexcept { return n_; }

  template <class F>
  void each(F&& f) {
    for (auto& l : lines_) f(l);
  }

  virtual void pay(int amount) = 0;
  bool operator==(const Cart& other) const { return n_ == other.n_; }

 private:
  int n_ = 0;
  std::vector<T> lines_;
};

enum class Kind { Food, Book };

using Lines = std::vector<int>;

struct Point {
  int x, y;
};

[[nodiscard]] inline int twice(int x) { return x * 2; }

}  // namespace shop::core

template <typename T>
int shop::core::Cart<T>::total(int n) const {
  auto f = [](int a) { return a; };
  return f(n);
}
