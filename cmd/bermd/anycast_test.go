package main_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/control"
)

// The admin API of a daemon that announces, and of one that does not. What routers see of it is
// the labs' concern.
func TestAnycastOrders(t *testing.T) {
	p := mustStart(t, onLoopback)
	status := func(err error, want int) {
		t.Helper()
		var e *control.Error
		if !errors.As(err, &e) || e.Status != want {
			t.Errorf("%v, want status %d", err, want)
		}
	}
	_, err := p.client.Anycast(t.Context())
	status(err, http.StatusNotFound)
	_, err = p.client.OrderAnycast(t.Context(), control.AnycastOrder{Command: "drain"})
	status(err, http.StatusNotFound)

	p.write(t, onLoopback, `vips: [{name: web, address: 203.0.113.10, port: 80, protocol: tcp}]
anycast: {as: 64513, router_id: 192.0.2.1, peers: [{address: 127.0.0.2, port: 1, as: 64512}]}`)
	done, err := p.client.Reload(t.Context())
	if err != nil || !strings.Contains(strings.Join(done.Changed, "\n"), "section anycast is in force") {
		t.Fatal(done, err)
	}
	var s control.Anycast
	within(t, 20*time.Second, "requests get through, and the kernel half is missed", func() (bool, error) {
		s, err = p.client.Anycast(t.Context())
		return strings.Contains(s.Why, "kernel half is not there"), err
	})
	if s.Phase != "withdrawn" || len(s.Routes) != 0 || len(s.Peers) != 1 || s.Peers[0].Up {
		t.Errorf("%+v", s)
	}
	_, err = p.client.OrderAnycast(t.Context(), control.AnycastOrder{Command: "retreat"})
	status(err, http.StatusBadRequest)
	for _, want := range []string{"drain", "withdraw", ""} {
		command := want
		if command == "" {
			command = "announce"
		}
		s, err := p.client.OrderAnycast(t.Context(), control.AnycastOrder{Command: command})
		if err != nil || s.Command != want || len(s.Changed) == 0 {
			t.Errorf("%s: %+v %v", command, s, err)
		}
	}
}
