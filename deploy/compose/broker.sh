#!/bin/sh
# mosquitto as deploy/mosquitto has it, with its files where a container has them, and listening on the container's network.
set -eu
umask 077
sed -e 's|^listener 1883 127\.0\.0\.1$|listener 1883|' \
    -e 's|^persistence_location .*|persistence_location /mosquitto/data/|' \
    -e 's|^password_file .*|password_file /secrets/passwords|' \
    -e 's|^acl_file .*|acl_file /tmp/acl|' /etc/streamer/mosquitto.conf > /tmp/mosquitto.conf
cp /etc/streamer/acl /tmp/acl
# Whoever asks whether it is healthy. $SYS is a name of the broker's.
# shellcheck disable=SC2016
printf '\nuser health\ntopic read $SYS/broker/uptime\n' >> /tmp/acl
exec mosquitto -c /tmp/mosquitto.conf
