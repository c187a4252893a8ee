/* SPDX-License-Identifier: Apache-2.0 */
/* proof.h - what the TUN of a scratch network does with the packets that it is given and gives. */
#ifndef PROOF_H
#define PROOF_H

#include "scratch.h"

int proof_csum(struct scratch *scratch, uint8_t family);
int proof_tso(struct scratch *scratch, uint8_t family);
int proof_uso(struct scratch *scratch, uint8_t family);
int proof_gro(struct scratch *scratch, uint8_t family);
int proof_ugro(struct scratch *scratch, uint8_t family);

#endif
