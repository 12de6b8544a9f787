package edge

import (
	"cmp"
	"net/netip"
	"strconv"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/congestion"
	"github.com/bermedge/berm/userspace/congestion/controller"
	"github.com/bermedge/berm/userspace/congestion/quiccc"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/observe"
)

// newQUICCC gives QUIC connections what the policy of TCP's has for their clients.
func newQUICCC(e *Edge) *quiccc.Chooser {
	if !quiccc.Selectable {
		e.log.Warn("QUIC connections run Reno, whatever the policy says", "error", quiccc.ErrPlain)
	}
	return quiccc.New(quiccc.Options{Choose: e.chooseQUIC, Paths: paths{e.kernel}, Results: results{e.kernel}, Log: e.log.Logger})
}

// chooseQUIC decides as the kernel half does for TCP, or from the file alone where there is none.
func (e *Edge) chooseQUIC(client netip.AddrPort) (quiccc.Choice, error) {
	file := e.cfg.Load().CC
	p := file.Choose(client.Addr())
	var failed error
	_ = e.kernel.use(func(set *maps.Set) error { // without it the file decides
		var of maps.CCProfile
		if of, failed = set.CC.Choose(client); failed == nil {
			p = of
		}
		return nil
	})
	return quiccc.Choice{Profile: p.Name, ID: p.ID, Controller: p.Controller, InitialWindow: p.InitialWindow, AckDelay: p.AckDelay, QUIC: onlyQUIC(file, p)}, failed
}

// onlyQUIC is what a profile has that only QUIC connections do: the kernel half has no place for it.
func onlyQUIC(file congestion.Config, p maps.CCProfile) congestion.QUIC {
	if p.Owner != maps.OwnerFile {
		return congestion.QUIC{}
	}
	of, _ := file.Profile(p.Name)
	return of.QUIC
}

// explainQUIC tells what a client's QUIC connection that has a profile begins with.
func (e *Edge) explainQUIC(client netip.Addr, p maps.CCProfile) control.CCQUIC {
	name, err := quiccc.Controller(p.Controller)
	out := control.CCQUIC{Controller: name, InitialWindow: quiccc.InitialWindow(p.InitialWindow)}
	only := onlyQUIC(e.cfg.Load().CC, p)
	out.InitialRTT, out.PacketSize, out.KeepAlive = only.InitialRTT.Seconds(), only.PacketSize, only.KeepAlive.Seconds()
	out.StreamWindow, out.ConnectionWindow = only.StreamWindow, only.ConnectionWindow
	if name == controller.BBR {
		out.LossFloor = e.quiccc.Floor(client)
	}
	if err != nil {
		out.Why = err.Error()
	}
	return out
}

// paths is the kernel half's table of network facts. While there is no kernel half nothing is written.
type paths struct{ kernel *kernelLink }

// Get returns what is known of an address's prefix.
func (p paths) Get(a netip.Addr, of maps.Protocol) (path maps.Path, err error) {
	err = maps.ErrNotFound
	_ = p.kernel.use(func(set *maps.Set) error {
		path, err = set.Paths.Get(a, of)
		return nil
	})
	return path, err
}

// Put writes it.
func (p paths) Put(path maps.Path) (err error) {
	_ = p.kernel.use(func(set *maps.Set) error {
		err = set.Paths.Put(path)
		return nil
	})
	return err
}

// results is the kernel half's table of what came of connections. While there is no kernel half nothing is counted.
type results struct{ kernel *kernelLink }

// CountResult adds what came of one.
func (r results) CountResult(client netip.Addr, profile uint32, p maps.CCPart) (err error) {
	_ = r.kernel.use(func(set *maps.Set) error {
		err = set.CC.CountResult(client, profile, p)
		return nil
	})
	return err
}

func (e *Edge) quicInfo() control.QUICInfo {
	info := control.QUICInfo{Selectable: quiccc.Selectable, Controllers: map[string]uint64{}, Datagrams: e.server.Datagrams()}
	if !quiccc.Selectable {
		info.Why = quiccc.ErrPlain.Error()
	}
	for n, v := range e.quiccc.Counts() {
		info.Controllers[n.Controller] += v
		if n.Refused {
			info.Refused += v
		}
	}
	return info
}

func (e *Edge) emitQUIC(emit observe.Emit) {
	selectable := 0.0
	if quiccc.Selectable {
		selectable = 1
	}
	emit(observe.QUICSelectable, selectable)
	for worker, n := range e.server.Datagrams() {
		emit(observe.QUICDatagrams, float64(n), strconv.Itoa(worker))
	}
	for n, v := range e.quiccc.Counts() {
		emit(observe.QUICControllers, float64(v), n.Controller, cmp.Or(n.Profile, "host"), strconv.FormatBool(n.Refused))
	}
	whole, bounded := e.quiccc.Reports()
	emit(observe.QUICReports, float64(whole), "whole")
	emit(observe.QUICReports, float64(bounded), "bounded")
}
