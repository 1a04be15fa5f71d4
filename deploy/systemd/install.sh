#!/bin/sh
# Unit, settings and a place for secrets; run as root, after the program was installed in /opt/streamer.
# Settings that are there stay as they are. With DESTDIR it fills a package's tree and starts nothing.
set -eu
here=$(dirname "$0")
root=${DESTDIR:-}
units=$root${UNITDIR:-/usr/local/lib/systemd/system}

install -D -m 644 "$here/streamer.service" "$units/streamer.service"
version=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
if [ "${version:-0}" -ge 253 ]; then
    install -D -m 644 "$here/notify-reload.conf" "$units/streamer.service.d/notify-reload.conf"
else
    rm -f "$units/streamer.service.d/notify-reload.conf"
fi
install -d -m 755 "$root/etc/streamer" "$root/usr/local/bin"
[ -e "$root/etc/streamer/streamer.toml" ] || install -m 644 "$here/streamer.toml" "$root/etc/streamer/streamer.toml"
install -d -m 700 "$root/etc/credstore"
ln -sf /opt/streamer/bin/streamer "$root/usr/local/bin/streamer"
[ -n "$root" ] || systemctl daemon-reload
