%% Chat rooms: an Erlang process for each, a Python protocol for each member. From this folder, after `rebar3 compile`:
%%     ERL_LIBS=../_build/default/lib escript chat.erl 8080
%%     nc localhost 8080
-module(chat).
-mode(compile).
-behaviour(gen_server).

-export([main/1, listen/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% The hall knows the rooms and sends who wants to join to the right one. It counts the members, so that a room ends
%% with its last one, and never while somebody is on the way into it.
-record(hall, {rooms = #{} :: #{Name :: binary() => {pid(), NumberOfMembers :: pos_integer()}}}).
%% Members: their nick and monitor, by connection.
-record(room, {name :: binary(), members = #{} :: #{reference() => {Nick :: binary(), reference()}}}).

main([Port]) ->
    {ok, _} = listen(list_to_integer(Port)),
    timer:sleep(infinity).

listen(Port) ->
    {ok, _} = application:ensure_all_started(py_reactor),
    {ok, _} = gen_server:start_link({local, chat}, ?MODULE, #hall{}, []),
    py_reactor:start_listener(chat, #{port => Port, protocol => {chat_protocol, 'ChatProtocol'}}).

init(State) ->
    {ok, State}.

%% From Python, through the hall: a member wants to join.
handle_info({<<"join">>, Name, Conn, Nick}, #hall{rooms = Rooms} = Hall) ->
    {Room, Members} =
        case Rooms of
            #{Name := Known} -> Known;
            #{} -> {start_room(Name), 0}
        end,
    Room ! {join, Conn, Nick},
    {noreply, Hall#hall{rooms = Rooms#{Name => {Room, Members + 1}}}};
handle_info({left, Name}, #hall{rooms = Rooms} = Hall) ->
    case Rooms of
        #{Name := {Room, 1}} ->
            Room ! close,
            {noreply, Hall#hall{rooms = maps:remove(Name, Rooms)}};
        #{Name := {Room, Members}} ->
            {noreply, Hall#hall{rooms = Rooms#{Name := {Room, Members - 1}}}}
    end;
handle_info({join, Conn, Nick}, #room{name = Name, members = Members} = Room) ->
    case lists:keymember(Nick, 1, maps:values(Members)) of
        true ->
            _ = py_reactor:send(Conn, {refused, <<Nick/binary, " is taken in ", Name/binary>>}),
            chat ! {left, Name},
            {noreply, Room};
        false ->
            Monitor = py_reactor:monitor(Conn),
            _ = py_reactor:send(Conn, {joined, self(), Name}),
            {noreply, tell(Room#room{members = Members#{Conn => {Nick, Monitor}}}, ["* ", Nick, " has joined"])}
    end;
%% From Python: a member of this room speaks, or leaves it. One who is gone may still be heard of.
handle_info({<<"said">>, Conn, Text}, #room{members = Members} = Room) ->
    case Members of
        #{Conn := {Nick, _}} -> {noreply, tell(Room, [Nick, ": ", Text])};
        #{} -> {noreply, Room}
    end;
handle_info({<<"left">>, Conn}, Room) ->
    {noreply, leave(Conn, "has left", Room)};
handle_info({'DOWN', _Monitor, connection, Conn, Reason}, Room) ->
    {noreply, leave(Conn, ["is gone: ", reason(Reason)], Room)};
handle_info(close, Room) ->
    {stop, normal, Room}.

handle_call(_Call, _From, State) -> {reply, {error, unknown_call}, State}.

handle_cast(_Cast, State) -> {noreply, State}.

start_room(Name) ->
    {ok, Room} = gen_server:start_link(?MODULE, #room{name = Name}, []),
    Room.

leave(Conn, How, #room{name = Name, members = Members} = Room) ->
    case maps:take(Conn, Members) of
        {{Nick, Monitor}, Others} ->
            _ = py_reactor:demonitor(Monitor),
            chat ! {left, Name},
            tell(Room#room{members = Others}, ["* ", Nick, " ", How]);
        error ->
            Room
    end.

%% No Python is run for this.
tell(#room{members = Members} = Room, Text) ->
    Line = iolist_to_binary([Text, "\n"]),
    lists:foreach(fun(Conn) -> push(Conn, Line) end, maps:keys(Members)),
    Room.

push(Conn, Line) ->
    case py_reactor:push(Conn, Line) of
        %% Faster than the server can send: the room waits, and with it who speaks there.
        {error, overload} ->
            timer:sleep(1),
            push(Conn, Line);
        %% Sent, or the member is gone and a 'DOWN' tells it in a moment.
        _ ->
            ok
    end.

reason({failed, Text}) -> Text;
reason(Reason) -> atom_to_binary(Reason).
