#!/bin/sh
# Makes a password for each user of the broker and for Grafana's `admin`, where there is none yet, and hands each service
# what it needs. Group 0, to which the services belong, may read; a password that was changed in /passwords is handed on.
set -eu
umask 027
for user in streamer zigbee2mqtt operator health grafana; do
    [ -s "/passwords/$user" ] && continue
    head -c 18 /dev/urandom | base64 > "/passwords/$user.part"
    mv "/passwords/$user.part" "/passwords/$user"
done

cp /passwords/streamer /for/streamer/mqtt.password
cp /passwords/grafana /for/grafana/admin
cp /passwords/health /for/broker/health
for user in streamer zigbee2mqtt operator health; do
    printf '%s:%s\n' "$user" "$(cat "/passwords/$user")"
done > "${TMPDIR:-/tmp}/users"
mosquitto_passwd -U "${TMPDIR:-/tmp}/users" # hashes them
cp "${TMPDIR:-/tmp}/users" /for/broker/passwords.part
mv /for/broker/passwords.part /for/broker/passwords
