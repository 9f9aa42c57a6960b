// A test is a function with a name; a check that fails throws. Run `deem-native-tests [part of a name]`.
#pragma once
#include <string>

#include "core/error.h"

namespace deem::test {

struct Failure {
  std::string message;
};

struct Case {
  Case(const char* name, void (*run)());
};

#define DEEM_TEST_JOIN_(a, b) a##b
#define DEEM_TEST_JOIN(a, b) DEEM_TEST_JOIN_(a, b)
// TEST("allocator: blocks are reused") { ... }
#define TEST(name) DEEM_TEST_AT(name, DEEM_TEST_JOIN(test_at_line_, __LINE__))
#define DEEM_TEST_AT(name, f)                                           \
  static void f();                                                      \
  static const ::deem::test::Case DEEM_TEST_JOIN(case_, f){(name), &f}; \
  static void f()

#define EXPECT(condition)                                                                                  \
  do {                                                                                                     \
    if (!(condition)) throw ::deem::test::Failure{::deem::str(__FILE__, ':', __LINE__, ": ", #condition)}; \
  } while (0)

#define EXPECT_EQ(a, b)                                                                                           \
  do {                                                                                                            \
    auto got_ = (a);                                                                                              \
    auto want_ = (b);                                                                                             \
    if (!(got_ == want_))                                                                                         \
      throw ::deem::test::Failure{::deem::str(__FILE__, ':', __LINE__, ": ", #a, " is ", got_, ", not ", want_)}; \
  } while (0)

// f must throw exactly E, with `part` in its message.
template <class E, class F>
void expect_error(F&& f, const std::string& part) {
  try {
    f();
  } catch (const Error& e) {
    if (!dynamic_cast<const E*>(&e)) throw Failure{str("threw ", e.code, ": ", e.what())};
    if (std::string(e.what()).find(part) == std::string::npos) throw Failure{str("'", part, "' is not in: ", e.what())};
    return;
  }
  throw Failure{str("threw nothing, but should have said '", part, "'")};
}

}  // namespace deem::test
