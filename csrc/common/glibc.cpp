// What keeps the libraries loadable on systems older than the one that compiled them.
#if defined(__linux__)

// libstdc++'s shared_ptr asks this flag of glibc 2.32 whether it may count without atomics. Defined here, and
// visible in this library only, it is not looked for in glibc: the answer is always no. (Not declared by the
// system's header, which would make it visible.)
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

#endif
