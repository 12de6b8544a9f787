// Init is PID 1 of a virtual machine with an old kernel: it brings the kernel half up there through
// the loader, runs the packet tests of bpf, and prints what came of it as `go test` would. It
// and those tests are linked statically and are all the programs in the machine.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Lines that the test looks for; the rest is for people.
const (
	donePrefix  = "BERM-VM done: "
	tablePrefix = "BERM-VM table: "
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this powers the machine off when it is done; it runs in a virtual machine only")
		os.Exit(2)
	}
	// Packages probe the kernel in their init functions and keep the answer: start over once /proc is there.
	if len(os.Args) < 2 || os.Args[1] != "again" {
		err := prepare()
		if err == nil {
			err = unix.Exec("/init", append([]string{"init", "again"}, os.Args[1:]...), os.Environ())
		}
		fmt.Println("prepare:", err)
	}
	start := time.Now()
	failed := 0
	for _, c := range checks {
		if failed > 0 && c.after {
			continue
		}
		fmt.Println("=== RUN  ", c.name)
		begin := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		err := c.run(ctx)
		cancel()
		verdict := "PASS"
		if err != nil {
			fmt.Printf("    %v\n", err)
			verdict = "FAIL"
			failed++
		}
		fmt.Printf("--- %s: %s (%.2fs)\n", verdict, c.name, time.Since(begin).Seconds())
	}
	fmt.Printf("%s%d checks, %d failed, %.1fs\n", donePrefix, len(checks), failed, time.Since(start).Seconds())
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("power off:", err)
	}
	select {} // PID 1 may not end
}

// prepare mounts what programs expect and loads the modules that came along. bpffs is
// left to the loader.
func prepare() error {
	for _, m := range []struct{ fs, at string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"devtmpfs", "/dev"},
		{"tmpfs", "/run"},
		{"cgroup2", "/sys/fs/cgroup"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.at, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	modules, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, path := range modules {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
	}
	return nil
}
