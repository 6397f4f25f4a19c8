/* User-Mode Linux on processors whose register state is larger than it was built for (AMX: 11,008 bytes instead of 2,696).
 *
 * The guest's kernel keeps the extended registers of its processes by ptrace. The host gives a part of the state for a short buffer, but
 * takes back only the whole, so the guest dies at its first process. This library, preloaded, makes up the whole: what the short buffer
 * does not have stays as it is. The guest's processes do not use it: a process has AMX only after asking for it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#define NT_X86_XSTATE 0x202
/* Where the state says which of its components are in use, and the components of AMX. */
#define XSTATE_BV 512
#define AMX (3ULL << 17)

typedef long (*ptrace_fn)(int, ...);

long ptrace(enum __ptrace_request request, ...) {
  static ptrace_fn next;
  static char whole[64 << 10] __attribute__((aligned(64)));
  if (!next) next = (ptrace_fn)dlsym(RTLD_NEXT, "ptrace");
  va_list args;
  va_start(args, request);
  pid_t pid = va_arg(args, pid_t);
  void *addr = va_arg(args, void *);
  struct iovec *part = va_arg(args, struct iovec *);
  va_end(args);
  int ours = (request == PTRACE_GETREGSET || request == PTRACE_SETREGSET) && (long)addr == NT_X86_XSTATE;
  if (!ours) return next((int)request, pid, addr, part);

  struct iovec all = {whole, sizeof whole};
  long r = next(PTRACE_GETREGSET, pid, addr, &all);
  if (r < 0) return r;
  if (part->iov_len > all.iov_len) part->iov_len = all.iov_len;
  if (request == PTRACE_GETREGSET) {
    memcpy(part->iov_base, whole, part->iov_len);
    return 0;
  }
  memcpy(whole, part->iov_base, part->iov_len);
  if (part->iov_len < all.iov_len) {
    unsigned long long used;
    memcpy(&used, whole + XSTATE_BV, sizeof used);
    used &= ~AMX;
    memcpy(whole + XSTATE_BV, &used, sizeof used);
  }
  return next(PTRACE_SETREGSET, pid, addr, &all);
}
