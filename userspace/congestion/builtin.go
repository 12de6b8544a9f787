package congestion

import (
	"maps"
	"time"
)

// builtIn are the profiles that are there without the file, for kinds of access that everybody has. They are the file's, as if it had them.
func builtIn() map[string]Profile {
	return map[string]Profile{
		// Losses of radio are no congestion, and BBR paces a window that other controllers would send as one burst. An
		// acknowledgement waits for the answer that it can go with, so that it wakes no radio by itself.
		"mobile": {Controller: "bbr", InitialWindow: 32, AckDelay: 40 * time.Millisecond, QUIC: QUIC{
			InitialRTT:   150 * time.Millisecond,
			PacketSize:   1232,                               // 1280 - 48: every IPv6 path takes it, whatever tunnels an operator has
			KeepAlive:    20 * time.Second,                   // NATs forget a silent UDP flow after 30 s (RFC 9308, 3.2)
			StreamWindow: 1 << 20, ConnectionWindow: 3 << 19, // 50 Mbit/s * 150 ms = 0.9 MiB
		}},
		"fixed": {Controller: "cubic", InitialWindow: 20, QUIC: QUIC{
			InitialRTT:   40 * time.Millisecond,
			PacketSize:   1350,                               // PPPoE and a tunnel take up to 100 of 1452
			StreamWindow: 4 << 20, ConnectionWindow: 6 << 20, // 1 Gbit/s * 30 ms = 3.6 MiB
		}},
		"datacentre": {Controller: "cubic", InitialWindow: 10, RTOMin: 5 * time.Millisecond, AckDelay: 5 * time.Millisecond, QUIC: QUIC{
			InitialRTT:   2 * time.Millisecond,
			PacketSize:   1452,                                 // 1500 - 48
			StreamWindow: 16 << 20, ConnectionWindow: 24 << 20, // 25 Gbit/s * 5 ms = 15 MiB
		}},
	}
}

// all are the profiles that there are.
func (c Config) all() map[string]Profile {
	all := builtIn()
	maps.Copy(all, c.Profiles)
	return all
}

// Profile is the file's profile of a name, or the built-in one.
func (c Config) Profile(name string) (Profile, bool) {
	p, ok := c.all()[name]
	return p, ok
}
