// Package bpf holds the programs that run in the kernel and the Go bindings generated from them.
// The bindings are committed, so that building needs no clang; `make generate` refreshes them.
package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package bpf -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Iinclude -isystem /usr/include/x86_64-linux-gnu" -type berm_drop -type berm_stage -type berm_exit -type berm_action -type berm_owner -type berm_config_flags -type berm_vip_flags -type berm_rate_flags -type berm_backend_flags -type berm_via -type berm_newcomer_state -type berm_cid_flags -type berm_gate_mode -type berm_reply_flags -type berm_next_hop -type berm_event -type berm_captured -type berm_limit XDP xdp_ingress.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package bpf -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Iinclude -isystem /usr/include/x86_64-linux-gnu" -no-global-types SockOps sock_ops.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package bpf -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Iinclude -isystem /usr/include/x86_64-linux-gnu" -no-global-types Reuseport reuseport.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package bpf -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Iinclude -isystem /usr/include/x86_64-linux-gnu" -no-global-types Egress egress.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package bpf -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Iinclude -isystem /usr/include/x86_64-linux-gnu" -no-global-types -type bench_case Bench bench.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package bpf -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Iinclude -isystem /usr/include/x86_64-linux-gnu" -no-global-types XDPTest xdp_berm_test.bpf.c
