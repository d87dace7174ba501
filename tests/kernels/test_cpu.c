// SPDX-License-Identifier: Apache-2.0
//
// Features of the CPU, and the cap of NORMD_CPU.
#include <sys/wait.h>
#include <unistd.h>

#include "../../kernels/cpu.h"
#include "cases.h"

// Features are detected once, so each cap needs a process that has not asked yet.
static unsigned features_with(const char *cap) {
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if ((cap ? setenv("NORMD_CPU", cap, 1) : unsetenv("NORMD_CPU")) != 0) _exit(255);
        _exit((int)cpu_features());
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) != 255);
    return (unsigned)WEXITSTATUS(status);
}

static void test_cap(void **state) {
    (void)state;
    const unsigned all = features_with(NULL);
    assert_int_equal(features_with("scalar"), 0);
    assert_int_equal(features_with("avx2"), all & CPU_AVX2);
    assert_int_equal(features_with("avx512"), all & (CPU_AVX2 | CPU_AVX512));
    assert_int_equal(features_with("other"), all);
    assert_int_equal(features_with(""), all);
#if defined(__x86_64__)
    assert_int_equal(all & CPU_NEON, 0);
    assert_true(!(all & CPU_AVX2) || __builtin_cpu_supports("avx2"));
    assert_true(all & CPU_AVX2 || !(all & CPU_AVX512));
#elif defined(__aarch64__)
    assert_int_equal(all, CPU_NEON);
#endif
}

static void test_caches(void **state) {
    (void)state;
    assert_true(cpu_cache_bytes(2) >= 32768);
    assert_true(cpu_cache_bytes(3) >= 32768);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cap), // first: nothing in this process may have asked for features
        cmocka_unit_test(test_caches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
