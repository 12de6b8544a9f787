package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/test/rig"
)

// unitState is what a unit tells.
type unitState struct {
	Starts int `json:"starts"`
	PID    int `json:"pid"`
	Others int `json:"others"` // processes that served before, and still run
}

// actUnit runs a program as its unit would: the first argument is where to ask (POST: start it again), the second
// where the program notifies, the third the user it runs as, the rest the program.
func actUnit(ctx context.Context, args []string) (err error) {
	user, err := strconv.ParseUint(args[2], 10, 32)
	if err != nil {
		return err
	}
	u, err := rig.NewUnit(args[1], args[3:], func(cmd *exec.Cmd) {
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: uint32(user), Gid: uint32(user)},
			AmbientCaps: []uintptr{unix.CAP_NET_BIND_SERVICE}, Pdeathsig: syscall.SIGKILL,
		}
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.Close()) }()
	if err := u.Start(ctx); err != nil {
		return err
	}
	starts := 1
	return serveActor(ctx, args[0], func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost { // one at a time: the scenario waits for the answer
			ctx, cancel := context.WithTimeout(r.Context(), 30*time.Second)
			defer cancel()
			if err := errors.Join(u.Stop(ctx, syscall.SIGTERM), u.Start(ctx)); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			starts++
		}
		pid, others := u.Main()
		state := unitState{starts, pid, others}
		_ = json.NewEncoder(w).Encode(state) // who asked is gone
	})
}

// startUnit starts bermd under an actor that keeps its sockets.
func (e *Edge) startUnit(bermd string) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	e.bermd, err = e.node.Start(rig.Daemon{Name: "bermd", Cgroup: e.cgroup, Args: append([]string{
		self, actorArg, "unit", e.m.lab.Path(e.Name + ".unit"), e.m.lab.Path(e.Name + ".notify"), strconv.Itoa(daemonUser),
	}, e.daemon(bermd)...)})
	return err
}

// restart does what systemctl restart does, and waits until the new daemon is ready.
func (e *Edge) restart(ctx context.Context) (s unitState, err error) {
	return s, askActor(ctx, http.MethodPost, e.m.lab.Path(e.Name+".unit"), &s)
}
