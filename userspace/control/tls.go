package control

// TLSInfo counts handshakes since the start.
type TLSInfo struct {
	TCP  Handshakes `json:"tcp"`
	QUIC Handshakes `json:"quic"`
	// Early counts sessions resumed with a ticket good for early data, by what became of that.
	Early map[string]uint64 `json:"early,omitempty"`
}

// Handshakes are those of one transport.
type Handshakes struct {
	Full    uint64 `json:"full"`
	Resumed uint64 `json:"resumed"`
}
